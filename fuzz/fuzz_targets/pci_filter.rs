//! [`gaol_fuzz::pci_filter`] as a program of libFuzzer.
#![no_main]
#![allow(missing_docs)]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gaol_fuzz::pci_filter::run(bytes));
