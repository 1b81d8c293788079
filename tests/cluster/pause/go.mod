module rewardfl.local/tests/cluster/pause

go 1.24.0
