"""Redraw every figure and table from the committed records."""

from rich.progress import track

from paper_figures import (
    fig01_gap_and_bounds,
    fig02_bounds_against_truth,
    fig03_cost,
    fig04_quality,
    fig05_measurement_cost,
    fig06_measured_against_theory,
    fig07_gap_along_training,
    fig08_calibration,
    fig09_ablation,
    fig10_sensitivity,
    fig11_bound_against_rate,
    fig12_placements,
    fig13_ensemble_laws,
    fig14_feasibility,
    fig15_n_and_rank,
    fig16_bounds_on_one_run,
    fig17_choice_of_rate,
    fig18_shift,
    fig19_language_model,
    fig20_measured_along_rate,
    fig21_decay_at_same_kappa,
    fig22_result,
    tab01_comparison,
    tab02_quality,
    tab03_certificates,
    tab04_bound_table,
    tab05_results,
    tab06_adalora,
)

SCRIPTS = (
    fig01_gap_and_bounds,
    fig02_bounds_against_truth,
    fig03_cost,
    fig04_quality,
    fig05_measurement_cost,
    fig06_measured_against_theory,
    fig07_gap_along_training,
    fig08_calibration,
    fig09_ablation,
    fig10_sensitivity,
    fig11_bound_against_rate,
    fig12_placements,
    fig13_ensemble_laws,
    fig14_feasibility,
    fig15_n_and_rank,
    fig16_bounds_on_one_run,
    fig17_choice_of_rate,
    fig18_shift,
    fig19_language_model,
    fig20_measured_along_rate,
    fig21_decay_at_same_kappa,
    fig22_result,
    tab01_comparison,
    tab02_quality,
    tab03_certificates,
    tab04_bound_table,
    tab05_results,
    tab06_adalora,
)

if __name__ == "__main__":
    for script in track(SCRIPTS, description="drawing"):
        script.main()
