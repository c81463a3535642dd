"""The collectives on tensors, one module for each kind; ``hora.torch.mpi_ops`` has them all."""
