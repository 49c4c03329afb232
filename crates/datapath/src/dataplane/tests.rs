//! These run as root: real maps, on a BPF file system of their own.
