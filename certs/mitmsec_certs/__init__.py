"""The enterprise CA: what a certificate must be, who may sign it, what an origin's is worth."""
