"""One page that shows what training did: `report.html`, which needs no network to be opened.

`stored.py` finds a run's files, `data.py` reads them, `curves.py`, `times.py` and `findings.py` say what they mean (pure),
`charts.py` draws, `clips.py` samples the videos into the page's size, `make.py` decides what a page shows and `page.py` puts it
together. `reporting.py`, outside of here, has it done while a run goes on; `command.py` is `rewardfl report`. Nothing here is
imported before a page is made, and nothing imports torch.
"""
