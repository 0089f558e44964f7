//! Pictures of tables: curves of latency over percentile, or bars.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::harness::rounds::{Cell, Series, Unit};

const SIZE: (u32, u32) = (960, 540);

/// The curves end at 1 in 10 to this power.
const NINES: f64 = 4.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Curves if there are latencies, otherwise bars of the column that is compared.
pub(crate) fn draw(cell: &Cell, path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    if cell.series.iter().any(|series| !series.latencies.is_empty()) {
        curves(cell, &area)?;
    } else {
        bars(cell, &area)?;
    }
    area.present()?;
    Ok(())
}

fn curves(cell: &Cell, area: &Area<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let series: Vec<&Series> = cell.series.iter().filter(|series| !series.latencies.is_empty()).collect();
    let low = series.iter().map(|series| series.latencies.min()).min().unwrap_or(1).max(1) as f64;
    let high = series.iter().map(|series| series.latencies.max()).max().unwrap_or(2) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(&cell.title, ("sans-serif", 20))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..NINES, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(5)
        .max_light_lines(4)
        .x_label_formatter(&|nines| percentile(*nines))
        .x_desc("percentile")
        .y_label_formatter(&|latency| Unit::Nanoseconds.format(*latency))
        .draw()?;
    for (index, series) in series.into_iter().enumerate() {
        let style = style(series, index);
        let points = (0..=400).map(|step| {
            let nines = f64::from(step) / 400.0 * NINES;
            (nines, series.latencies.value_at_quantile(1.0 - 10f64.powf(-nines)).max(1) as f64)
        });
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()?;
    Ok(())
}

fn bars(cell: &Cell, area: &Area<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let column = cell.column(cell.compared);
    let unit = cell.columns[column].unit;
    let count = cell.series.len() as i32;
    let high = cell.series.iter().map(|series| series.figure(column)).fold(0.0, f64::max);
    // The first contender is at the top, where the highest number is.
    let name = |place: &SegmentValue<i32>| match place {
        SegmentValue::CenterOf(place) if (0..count).contains(place) => cell.series[(count - 1 - place) as usize].name.to_owned(),
        _ => String::new(),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: {}", cell.title, cell.compared), ("sans-serif", 20))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(36)
        .y_label_area_size(180)
        .build_cartesian_2d(0.0..high * 1.1, (0..count - 1).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(cell.series.len())
        .y_label_formatter(&name)
        .x_label_formatter(&|figure| unit.format(*figure))
        .draw()?;
    chart.draw_series(cell.series.iter().enumerate().map(|(index, series)| {
        let place = count - 1 - index as i32;
        let corners = [(0.0, SegmentValue::Exact(place)), (series.figure(column), SegmentValue::Exact(place + 1))];
        let mut bar = Rectangle::new(corners, style(series, index).filled());
        bar.set_margin(4, 4, 0, 0);
        bar
    }))?;
    Ok(())
}

/// Ours are thick, floors are grey.
fn style(series: &Series, index: usize) -> ShapeStyle {
    let color = if series.is_floor { RGBColor(128, 128, 128) } else { rgb(Palette99::pick(index)) };
    color.stroke_width(if series.is_ours { 3 } else { 1 })
}

fn rgb(color: PaletteColor<Palette99>) -> RGBColor {
    let (red, green, blue) = color.rgb();
    RGBColor(red, green, blue)
}

/// How the percentile is called that leaves 1 in 10 to this power above it.
fn percentile(nines: f64) -> String {
    let percent = 100.0 - 100.0 * 10f64.powf(-nines);
    format!("{percent} %")
}
