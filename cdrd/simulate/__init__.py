"""PBXs to test with: reports in the field's own wire format, and the connections they travel on."""
