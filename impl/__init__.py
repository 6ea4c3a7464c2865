"""The protocol on torch.distributed: envelope, preflight, wire, roles, generator. The only folder that needs torch."""
