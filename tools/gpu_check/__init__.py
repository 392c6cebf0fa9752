"""What the CUDA kernels cost, told without a GPU: registers, occupancy, traffic and a floor."""
