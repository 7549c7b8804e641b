"""What precision does to a graph: rounding, conversion, sensitivity, the nodes to keep in fp32."""
