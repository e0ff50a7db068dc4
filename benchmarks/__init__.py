"""Speed, measured beside the peers and beside what the machine allows. See RESULTS.md and peers/README.md."""
