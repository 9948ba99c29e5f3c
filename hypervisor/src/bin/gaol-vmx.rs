//! The image for Intel's VMX.
#![no_std]
#![no_main]

gaol_hypervisor::image!();
