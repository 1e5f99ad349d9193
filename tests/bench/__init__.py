"""What cdrd reaches, measured as whole processes beside others that do its job: ``make bench``."""
