"""``signalbus bench``: what a broker does with this library, from where it is run."""
