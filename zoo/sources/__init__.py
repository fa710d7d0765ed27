"""Published weights: who has them (`ArchitectureFacts.sources`) and how to get at them."""
