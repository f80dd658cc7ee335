"""What the server speaks over HTTP."""
