// Command pause does nothing, patiently. It is process 1 of every pod's sandbox and of the namespaces in which the
// local cluster's node lives: it collects orphaned processes and ends on SIGTERM or SIGINT.
//
// With -lifeline it also ends when its standard input does, so that a node dies with the process that owns it, however
// that process ended: when process 1 of a PID namespace ends, the kernel kills all others in it.
package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	if len(os.Args) > 1 && os.Args[1] == "-lifeline" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	for received := range signals {
		if received != syscall.SIGCHLD {
			os.Exit(0)
		}
		reap()
	}
}

// reap collects every child that has ended; one SIGCHLD may stand for several.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
	}
}
