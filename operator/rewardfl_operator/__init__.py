"""The kopf operator of RewardFLJob. Never imports torch."""
