//! A scale as HdrHistogram's: cells are of one width within a power of two, and twice as wide in the next.

/// Divides each power of two into `1 << bits` cells. Values below `2 << bits` have a cell each.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) bits: u32,
}

impl Scale {
    /// The cell of a value.
    pub(super) const fn cell(self, value: u64) -> usize {
        let doublings = (value | 1 << self.bits).ilog2() - self.bits;
        ((doublings as usize) << self.bits) + (value >> doublings) as usize
    }

    /// The lowest value of a cell.
    pub(super) const fn lowest(self, cell: usize) -> u64 {
        let doublings = (cell >> self.bits).saturating_sub(1);
        ((cell - (doublings << self.bits)) as u64) << doublings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cell_begins_where_the_one_before_ends() {
        for scale in [Scale { bits: 3 }, Scale { bits: 7 }] {
            for cell in 1..40 << scale.bits {
                let lowest = scale.lowest(cell);
                assert_eq!((scale.cell(lowest - 1), scale.cell(lowest)), (cell - 1, cell));
            }
        }
    }
}
