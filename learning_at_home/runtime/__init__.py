"""The computing side of a server: batches of requests in, results out, one thread a device."""
