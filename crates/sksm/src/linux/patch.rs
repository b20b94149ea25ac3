//! Code that is patched, on machines of which it is known how instruction fetches come to see what was written.

/// Gives all of these items one condition. rustfmt follows modules into no macro of another name.
macro_rules! cfg_if {
    (if #[cfg($condition:meta)] { $($item:item)* }) => {
        $(#[cfg($condition)] $item)*
    };
}

cfg_if! {
    if #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "riscv64"
    ))] {
        mod guard;
        pub use guard::Patch;
    }
}
