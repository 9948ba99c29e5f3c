//! What a machine runs on, as the command line says it.

use gaol_tests::machine::Platform;

/// What a machine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Where {
    /// QEMU, which emulates SVM, VT-d and PCI Express
    Qemu,
    /// Bochs, which emulates VMX and counts instructions
    Bochs,
    /// QEMU on this host's own VMX
    Kvm,
}

impl Where {
    /// The same for the machines.
    pub fn platform(self) -> Platform {
        match self {
            Self::Qemu => Platform::Qemu,
            Self::Bochs => Platform::Bochs,
            Self::Kvm => Platform::Kvm,
        }
    }
}
