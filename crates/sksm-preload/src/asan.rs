use core::ffi::{CStr, c_char};

const OPTIONS: &CStr = c"verify_asan_link_order=0";

/// Asked by gcc's AddressSanitizer for options of the program's, which come after it; without this one it refuses to start with
/// any object loaded before it. This object takes the place of none of its functions.
#[unsafe(no_mangle)]
extern "C" fn __asan_default_options() -> *const c_char {
    OPTIONS.as_ptr()
}
