"""Whatever loads or saves a model: checkpoints, recipes, exports, shipped models."""
