//! System tests on emulated machines.
