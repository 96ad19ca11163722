//! Where the arithmetic happens: which device was asked for, and whether it is there.

use super::Precision;
use super::tensors::Tensors;
use candle_core::Device;

/// Which device is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, strum::Display, clap::ValueEnum)]
#[strum(serialize_all = "lowercase")]
pub enum DeviceChoice {
    /// An accelerator if this build knows one and the machine has it, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A graphics processor of NVIDIA; without one the program ends with the reason `AcceleratorMissing`.
    Cuda,
}

/// The accelerator that was asked for cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("a graphics processor was asked for (--device=cuda), but {0}")]
pub struct AcceleratorMissing(String);

/// A device with memory of its own.
#[derive(Debug, Clone)]
pub struct Accelerator(Device);

impl Accelerator {
    /// Finds the one that is to be used; none when the processor is to compute.
    ///
    /// # Errors
    /// When one was asked for by name, and there is none that can be used.
    pub fn find(choice: DeviceChoice) -> Result<Option<Self>, AcceleratorMissing> {
        match choice {
            DeviceChoice::Cpu => Ok(None),
            DeviceChoice::Auto => Ok(open().ok().map(Self)),
            DeviceChoice::Cuda => Ok(Some(Self(open()?))),
        }
    }

    /// A backend that computes on it.
    pub fn backend(&self) -> Tensors {
        Tensors::new(self.0.clone(), Precision::AsStored)
    }
}

/// What computes, for people: `cpu`, or what the accelerator's driver calls it.
pub fn name(accelerator: Option<&Accelerator>) -> String {
    accelerator.map_or_else(|| "cpu".to_owned(), |accelerator| device_name(&accelerator.0))
}

#[cfg(feature = "cuda")]
fn open() -> Result<Device, AcceleratorMissing> {
    Device::new_cuda(0).map_err(|error| {
        AcceleratorMissing(format!(
            "none can be used: {error}; check that the pod asks for one (resources.gpu) and that the node's driver works"
        ))
    })
}

#[cfg(not(feature = "cuda"))]
fn open() -> Result<Device, AcceleratorMissing> {
    Err(AcceleratorMissing(
        "this program was built without CUDA; use the image that was built with it (runtime.image)".to_owned(),
    ))
}

#[cfg(feature = "cuda")]
fn device_name(device: &Device) -> String {
    let name = match device {
        Device::Cuda(cuda) => cuda.cuda_stream().context().name().ok(),
        Device::Cpu | Device::Metal(_) => None,
    };
    name.unwrap_or_else(|| "cuda".to_owned())
}

#[cfg(not(feature = "cuda"))]
fn device_name(device: &Device) -> String {
    format!("{:?}", device.location())
}

/// Bytes that are free in the device's own memory, where the driver tells. Absent for the processor.
#[cfg(feature = "cuda")]
pub(super) fn free_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cuda(cuda) => {
            let (free, _) = cuda.cuda_stream().context().mem_get_info().ok()?;
            Some(free as u64)
        }
        Device::Cpu | Device::Metal(_) => None,
    }
}

/// Bytes that are free in the device's own memory. Absent for the processor.
#[cfg(not(feature = "cuda"))]
pub(super) fn free_memory(_device: &Device) -> Option<u64> {
    None
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn build_without_cuda_computes_on_the_processor_and_says_so_to_who_asks_for_more() {
        assert!(Accelerator::find(DeviceChoice::Auto).unwrap().is_none());
        assert!(Accelerator::find(DeviceChoice::Cpu).unwrap().is_none());
        let missing = Accelerator::find(DeviceChoice::Cuda).unwrap_err().to_string();
        assert!(
            missing.contains("--device=cuda") && missing.contains("built without CUDA"),
            "{missing}"
        );
    }
}
