"""Two small problems that ship: lanes on rendered roads, and Fashion-MNIST."""
