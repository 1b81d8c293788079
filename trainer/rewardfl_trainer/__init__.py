"""The trainer image's programs: `stage` and `train`. Never imports kopf."""
