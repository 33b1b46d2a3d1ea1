"""What is on disk: layout, database, locks, durable writes, contents."""
