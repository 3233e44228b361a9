"""How long a network takes: measured on this machine or a phone, and predicted."""
