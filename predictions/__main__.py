from predictions.cli import main

main()
