"""What tests of services on signalbus need: private RabbitMQ nodes and a proxy that makes networks fail."""
