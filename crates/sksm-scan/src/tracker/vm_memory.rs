use sksm::Region;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::{Tracker, Twins, Unsupported};
use crate::Settings;

impl Tracker {
    /// Tracks the memory of a guest, and keeps it mapped until the tracker has been dropped.
    ///
    /// Regions that are shared with other processes (memfd, as vhost-user needs it) or are of a file never merge, and are left out:
    /// [`tracked`](Self::tracked) tells how much is not. Regions that are added to the guest later are another tracker's.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Unsupported::Nothing`] where no region is private and anonymous.
    pub fn for_memory<B>(
        memory: &GuestMemoryMmap<B>,
        settings: Settings,
        twins: Twins,
    ) -> Result<Self, Unsupported>
    where
        B: Bitmap + Send + Sync + 'static,
        GuestMemoryMmap<B>: Clone,
    {
        let private = memory.iter().filter(|region| {
            region.flags() & libc::MAP_SHARED == 0 && region.file_offset().is_none()
        });
        let regions: Vec<Region> = private
            .map(|region| Region::new(region.as_ptr().expose_provenance(), region.size()))
            .collect();
        let kept = Box::new(memory.clone());
        // SAFETY: the tracker keeps the regions mapped, and vm-memory, which owns them, gives no references to their contents.
        unsafe { Self::keeping(&regions, settings, twins, Some(kept)) }
    }
}
