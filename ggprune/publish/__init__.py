"""What leaves this machine: model cards, uploads, Modelfiles."""
