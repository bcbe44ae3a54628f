"""Diagnosis of the host, its interfaces and the network, for both ``doctor`` commands.

``check_...`` functions read the state of the machine, ``diagnose_...`` functions turn
such a state into findings. They are separate so that tests can diagnose states that the
machine is not in.
"""
