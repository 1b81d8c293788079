"""The trainer image's programs: `stage` and `train`. Never imports kopf."""

import os

# awscrt is here for checksums. Where botocore finds it, it would sign with it as well, and find endpoints by its rules.
os.environ.setdefault("BOTO_DISABLE_CRT", "true")
