"""Three small problems that ship: lanes, and vehicles and signs, on rendered roads; and Fashion-MNIST."""
