"""The DHT over real sockets on loopback."""
