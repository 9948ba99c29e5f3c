//! The Gaol hypervisor.
