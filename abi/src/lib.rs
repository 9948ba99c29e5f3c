//! Layouts shared by all parts of Gaol.
