//! What is refused, in one place.

use faer::MatRef;

use crate::Error;

pub(crate) fn check_shape(name: &'static str, matrix: MatRef<'_, f64>, expected: (usize, usize)) -> Result<(), Error> {
    let found = matrix.shape();
    if found == expected { Ok(()) } else { Err(Error::Shape { matrix: name, expected, found }) }
}

pub(crate) fn check_finite(name: &'static str, matrix: MatRef<'_, f64>) -> Result<(), Error> {
    for (column, values) in matrix.col_iter().enumerate() {
        if let Some(row) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { matrix: name, row, column, value: values[row] });
        }
    }
    Ok(())
}

pub(crate) fn check_kept(kept: &[usize], dim: usize) -> Result<(), Error> {
    for (position, &index) in kept.iter().enumerate() {
        if index >= dim || position > 0 && kept[position - 1] >= index {
            return Err(Error::Kept { index, position, dim });
        }
    }
    Ok(())
}

pub(crate) fn check_rank(rank: usize, largest: usize) -> Result<(), Error> {
    if rank <= largest { Ok(()) } else { Err(Error::Rank { rank, largest }) }
}
