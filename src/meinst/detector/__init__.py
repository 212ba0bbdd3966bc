"""The network, what trains it and what is kept of what it says; read ``meinst.py`` first."""
