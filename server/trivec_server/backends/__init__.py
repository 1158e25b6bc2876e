"""The engines behind one interface, and the builder of their graphs."""
