"""The mesh, the rules from logical axes to mesh axes, and exchange between devices."""
