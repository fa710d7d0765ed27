"""What DATA are like, before anybody trains on them: `finetune data inspect`."""
