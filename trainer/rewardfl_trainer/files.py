"""Names of the result files that several modules write, move or read."""

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
SAMPLES_FOLDER = "samples"
REPORT_FILE = "report.html"
BEST_FILE = "best.json"
