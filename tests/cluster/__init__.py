"""A real, local Kubernetes and a real S3 server for the tests and the demo; nothing in it is a mock.

`LocalCluster` runs etcd, the Kubernetes binaries, containerd and CoreDNS without a container engine; `SeaweedFS` is an S3
server with authentication. `python -m tests.cluster` is the command line. See docs/local-cluster.md. This package must
not import the operator or the trainer: it is the ground that they are tried on.
"""

from .host_image import HOST_IMAGE, host_image_pod_patch
from .local_cluster import LocalCluster
from .report import ClusterError
from .seaweedfs import SeaweedFS

__all__ = ["HOST_IMAGE", "ClusterError", "LocalCluster", "SeaweedFS", "host_image_pod_patch"]
