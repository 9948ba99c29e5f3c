//! The image for AMD's SVM.
#![no_std]
#![no_main]

gaol_hypervisor::image!();
