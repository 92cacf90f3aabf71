"""What several chapters share; knows no chapter."""
