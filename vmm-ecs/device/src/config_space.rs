//! Config space: what the device offers and what the driver chose.

use ecs_abi::*;

/// Length of the window a front-end may read, bytes; what lies behind the structure reads as zero.
#[cfg(test)]
const WINDOW: u32 = 0x1000;

const LINE_SIZE: u16 = 64;
const _: () = assert!(LINE_SIZE as usize == VIRTIO_ECS_LINE_SIZE);

/// Offset of a field of the config structure.
macro_rules! at {
    ($field:ident) => {
        const { std::mem::offset_of!(VirtioEcsConfig, $field) }
    };
}

/// What the driver chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) version: u16,
    pub(crate) features: u64,
    /// The driver has written its features.
    pub(crate) committed: bool,
}

/// Config space of one device.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSpace {
    config: VirtioEcsConfig,
}

impl ConfigSpace {
    pub(crate) fn new(
        generation: u32,
        nr_doorbells: u16,
        extension_ns: u32,
        slice_ns: u32,
    ) -> Self {
        let doorbell = if nr_doorbells > 0 {
            VIRTIO_ECS_F_DOORBELL
        } else {
            0
        };
        Self {
            config: VirtioEcsConfig {
                magic: VIRTIO_ECS_MAGIC,
                version_min: VIRTIO_ECS_VERSION,
                version_max: VIRTIO_ECS_VERSION,
                features: VIRTIO_ECS_F_LINES
                    | VIRTIO_ECS_F_WORD
                    | VIRTIO_ECS_F_WAIT
                    | VIRTIO_ECS_F_HINTS
                    | VIRTIO_ECS_F_EVENTS
                    | doorbell,
                max_vcpus: VIRTIO_ECS_MAX_VCPUS,
                line_size: LINE_SIZE,
                nr_doorbells,
                generation,
                extension_ns,
                slice_ns,
                ..Default::default()
            },
        }
    }

    /// Exactly `size` bytes from `offset`, whatever they are.
    pub(crate) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.config.to_bytes();
        (0..size)
            .map(|n| {
                let at = u64::from(offset) + u64::from(n);
                usize::try_from(at)
                    .ok()
                    .and_then(|at| bytes.get(at))
                    .copied()
                    .unwrap_or(0)
            })
            .collect()
    }

    /// Takes the bytes that fall on the driver's fields. Returns whether `driver_features` was
    /// touched, which commits the choice.
    pub(crate) fn write(&mut self, offset: u32, data: &[u8]) -> bool {
        let version = at!(driver_version)..at!(driver_version) + 2;
        let features = at!(driver_features)..at!(driver_features) + 8;
        let mut bytes = self.config.to_bytes();
        let mut committed = false;
        for (n, value) in data.iter().enumerate() {
            let Some(at) = usize::try_from(offset)
                .ok()
                .and_then(|offset| offset.checked_add(n))
            else {
                break;
            };
            if (version.contains(&at) || features.contains(&at))
                && let Some(byte) = bytes.get_mut(at)
            {
                *byte = *value;
                committed |= features.contains(&at);
            }
        }
        if let Some(config) = VirtioEcsConfig::from_bytes(&bytes) {
            self.config = config;
        }
        if committed {
            self.config.status = self.evaluate();
        }
        committed
    }

    fn evaluate(&self) -> u32 {
        let config = &self.config;
        if !(config.version_min..=config.version_max).contains(&config.driver_version) {
            VIRTIO_ECS_NEG_BAD_VERSION
        } else if config.driver_features & !config.features != 0 {
            VIRTIO_ECS_NEG_BAD_FEATURES
        } else {
            VIRTIO_ECS_NEG_OK
        }
    }

    /// Features in force; `None` until version and features were accepted.
    pub(crate) fn negotiated(&self) -> Option<u64> {
        (self.config.status == VIRTIO_ECS_NEG_OK).then_some(self.config.driver_features)
    }

    pub(crate) fn choice(&self) -> Choice {
        Choice {
            version: self.config.driver_version,
            features: self.config.driver_features,
            committed: self.config.status != VIRTIO_ECS_NEG_NONE,
        }
    }

    /// Puts a saved choice and generation back; the choice is judged again.
    pub(crate) fn restore(&mut self, generation: u32, choice: Choice) {
        self.config.generation = generation;
        self.config.driver_version = choice.version;
        self.config.driver_features = choice.features;
        self.config.status = if choice.committed {
            self.evaluate()
        } else {
            VIRTIO_ECS_NEG_NONE
        };
    }

    pub(crate) fn generation(&self) -> u32 {
        self.config.generation
    }

    pub(crate) fn max_vcpus(&self) -> u32 {
        self.config.max_vcpus
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )]
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(7, 4, 1_000_000, 3_000_000)
    }

    fn status(space: &ConfigSpace) -> u32 {
        VirtioEcsConfig::from_bytes(&space.read(0, 64))
            .unwrap()
            .status
    }

    #[test]
    fn every_offset_and_size_has_an_answer_of_that_size() {
        let space = space();
        let whole = space.read(0, WINDOW);
        assert_eq!(&whole[..64], &space.config.to_bytes());
        assert!(whole[64..].iter().all(|byte| *byte == 0));
        for offset in (0..80).chain([0xff0, 0xfff, 0x1000, u32::MAX]) {
            for size in 0..=80 {
                let got = space.read(offset, size);
                assert_eq!(got.len(), size as usize);
                for (n, byte) in got.iter().enumerate() {
                    let at = offset as usize + n;
                    assert_eq!(*byte, whole.get(at).copied().unwrap_or(0), "{offset}+{n}");
                }
            }
        }
    }

    #[test]
    fn the_choice_may_be_written_in_any_pieces() {
        let features = VIRTIO_ECS_F_LINES | VIRTIO_ECS_F_WORD;
        for piece in [1, 2, 4, 8] {
            let mut space = space();
            assert!(!space.write(40, &1u16.to_le_bytes()));
            assert_eq!(status(&space), VIRTIO_ECS_NEG_NONE);
            for (n, part) in features.to_le_bytes().chunks(piece).enumerate() {
                assert!(space.write(48 + (n * piece) as u32, part));
            }
            assert_eq!(status(&space), VIRTIO_ECS_NEG_OK);
            assert_eq!(space.negotiated(), Some(features));
        }
        let mut space = space();
        let mut tail = [0u8; 24];
        tail[0] = 1;
        tail[8..16].copy_from_slice(&features.to_le_bytes());
        assert!(space.write(40, &tail));
        assert_eq!(space.negotiated(), Some(features));
    }

    #[test]
    fn bad_choices_are_named() {
        let mut space = space();
        space.write(40, &2u16.to_le_bytes());
        space.write(48, &VIRTIO_ECS_F_LINES.to_le_bytes());
        assert_eq!(status(&space), VIRTIO_ECS_NEG_BAD_VERSION);
        space.write(40, &1u16.to_le_bytes());
        assert_eq!(
            status(&space),
            VIRTIO_ECS_NEG_BAD_VERSION,
            "not committed again yet"
        );
        space.write(48, &(1u64 << 40).to_le_bytes());
        assert_eq!(status(&space), VIRTIO_ECS_NEG_BAD_FEATURES);
        assert_eq!(space.negotiated(), None);
        let mut none = ConfigSpace::new(1, 0, 1, 1);
        none.write(40, &1u16.to_le_bytes());
        none.write(48, &VIRTIO_ECS_F_DOORBELL.to_le_bytes());
        assert_eq!(
            status(&none),
            VIRTIO_ECS_NEG_BAD_FEATURES,
            "no doorbell is offered"
        );
    }

    #[test]
    fn other_fields_cannot_be_written() {
        let mut space = space();
        let before = space.read(0, 64);
        assert!(!space.write(0, &[0xff; 40]));
        assert!(!space.write(42, &[0xff; 6]));
        assert!(!space.write(56, &[0xff; 200]));
        assert!(!space.write(u32::MAX, &[0xff; 8]));
        assert!(!space.write(0, &[]));
        assert_eq!(space.read(0, 64), before);
    }
}
