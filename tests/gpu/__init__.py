"""The trainer's promises on an accelerator: `make test-gpu`. The same tests run, small, on a CPU in `make test`."""
