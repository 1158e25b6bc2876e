"""The accuracy report: every engine and precision of this machine beside the float32 reference."""
